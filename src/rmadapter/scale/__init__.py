"""Many runs, trials and images on a Ray cluster, or side by side on one machine.

cluster.py connects to the cluster and shares work; bench.py, predict.py and tune.py define the work. Only the process
that the user started writes results: workers read data, backbones and runs, and send results back.
"""
