"""The networks of Wan2.1, under the official names of parameters: text and image encoders, the DiT, the VAE (vae/).

Read dit.py first. The networks know nothing of ranks, and not where their weights come from: wan/parallel and
wan/weights put both in from outside.
"""
