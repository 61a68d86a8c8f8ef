"""A run for the services where people look at their other runs: Weights & Biases, MLflow, TensorBoard, Prometheus.

Read account.py first: it says what is sent. Each to_*.py hands it to one service, by the library of that service, which
is imported only there.
"""
