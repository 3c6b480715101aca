"""etcd's messages, generated from `etcd.proto`; see `generate.py`."""
