"""Python imports this at its start on nodes that are raylets of one computer. There msrun takes an address of the first node
for one of its own on all nodes, or on none (127.0.0.2 is no interface's), and would start a scheduler on each, or nowhere."""

import sys

if any(word.endswith("/msrun") for word in sys.orig_argv[:2]):
    from mindspore.parallel.cluster.process_entity import _api

    _api._is_local_ip = lambda address: "--node_rank=0" in sys.orig_argv
