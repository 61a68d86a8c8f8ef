"""The rules of the diagnosis, two files each: NAME.sql returns a row for each finding, NAME.py puts it in words.

    sentence(row)          # what makes the peak high
    knob(row)              # the key or variable that would change it; never one that the run had set already

The header of the SQL says from which size on there is a finding, and why. The keys of wan have no effect on a script:
for scripts, knob names what a program can change, a flag of the public Wan2.1, an environment variable, or what to look
for.
"""
