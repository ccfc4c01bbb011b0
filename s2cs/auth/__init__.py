"""Who is asking: authenticators that turn a bearer token into an identity."""
