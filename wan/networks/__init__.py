"""The networks of Wan2.1, under the official names of parameters: text and image encoders, the DiT, the VAE (vae/).

Read dit.py first. They know nothing of files, ranks and memory levers: those are put in from outside.
"""
