"""The producer service: acquisition and distributor, and the entrance to which workers connect."""
