"""The commands of ray-memprof, a file each: flags in, one call, lines out. cli.py lists them."""
