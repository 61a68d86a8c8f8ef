"""The causal video VAE: frame by frame through the whole network, and in slabs. Read network.py first."""
