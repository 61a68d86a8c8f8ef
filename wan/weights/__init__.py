"""How weights get from official files into networks, onto the device and away again. Read checkpoint.py first."""
