"""The commands of ray-memprof, one file each: it reads flags, makes one call and prints lines. cli.py lists them."""
