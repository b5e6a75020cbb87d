"""The server on a Ray cluster: replicas of the model behind one address.

A front takes the requests, and says for each which text it begins with. A router chooses the replica. The
replica runs the same application as a server of its own would.

prefixes.py   the beginnings of prompts, and which replica has read which
router.py     Ray Serve's router that goes by them
replica.py    the model with its application; calls.py: requests and replies between front and replica
front.py      keys, limits, retries; metrics.py: the metrics of all replicas
deploy.py     puts both on a cluster, replaces them, takes them off
"""
