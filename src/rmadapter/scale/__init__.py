"""Many runs, many trials and many images on a Ray cluster, or beside each other on one machine.

cluster.py reaches the cluster and shares work; bench.py, predict.py and tune.py say what the work is. Only the process
that the user started writes: its workers read data, backbones and runs, and send back what they found.
"""
