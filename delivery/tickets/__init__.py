"""Downloads by ticket: asked for, prepared in a queue, fetched while they last."""
