"""Where arrays live: the only mesh maker, the rules from logical to mesh axes, and the gather at use.

Mesh axes are explicit: the type of an array carries how it is cut, and data moves only where it is written.
"""
