"""The rules of the diagnosis, two files each: NAME.sql has a row where the rule speaks, NAME.py puts it in words.

    sentence(row)          # what holds the peak back
    knob(row)              # the key or variable that would change it; nothing that the run had set already

The header of the SQL says from which size on the rule speaks, and why. The keys of wan have no effect on a script: for
scripts, knob names an environment variable, or what to look for.
"""
