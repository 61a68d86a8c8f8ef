"""The first file that runs in the process of a script; the rank starts it as `python script_main.py Q R PARENT ...`.

It is run as a file, and not with -m, so that nothing of the working folder is imported before the script itself runs:
a script may have modules called queue or wan there. sys.path is then as Python would make it for the script.

Arguments: file descriptors of the two channels, for questions and for reports, and the pid of the rank. What follows is
for people who look at the list of processes: the script and its own arguments.
"""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder of this file: its modules are called log, network, settings ...
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from os.path import abspath, dirname

    root = dirname(dirname(dirname(abspath(__file__))))
    # The same ray_memprof as in the rank: another version may be installed.
    spec = PathFinder.find_spec("ray_memprof", [root])
    assert spec is not None and spec.loader is not None
    sys.modules["ray_memprof"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)
    if PathFinder.find_spec("ray_memprof") is None:
        sys.path.append(
            root
        )  # for processes that the script spawns; last, so that it hides no package of the script
    from ray_memprof.rank.script_child import main

    main(*map(int, sys.argv[1:4]))
