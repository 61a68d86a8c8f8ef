"""One video on several ranks: Ulysses, ring, guidance, FSDP2, a VAE in slabs, put from outside into built networks.

    environment.set_defaults(os.environ)                           # before the first CUDA or NCCL call
    torch.distributed.init_process_group("nccl", device_id=device)   # gloo on CPUs; every rank
    layout = Layout(ranks=4, ulysses=4, dit_fsdp=True, t5_fsdp=True)    # vae="split", backend="native"
    pipeline = Pipeline(task, ckpt_dir=folder, device=device, layout=layout)    # the same on every rank
    video = pipeline.generate(request)                             # the video on rank 0, None elsewhere

Only the default process group is used: no other is made.
"""

from wan.parallel.layout import Backend, Layout, VaeRanks, legal_degrees

__all__ = ["Backend", "Layout", "VaeRanks", "legal_degrees"]
