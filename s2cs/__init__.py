"""SciStream: control servers that open proxies between facilities on demand, and the client that asks for them.

A control server (S2CS) stands on the gateway of each side. For an authorised user it opens a proxy (S2DS): in front of
the service on the producer's side, in front of the application on the consumer's. This package knows nothing of what
flows through them.
"""
