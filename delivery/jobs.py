"""Durable jobs: what was begun goes on after a crash, from its last finished step."""
