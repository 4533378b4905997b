"""The type checker that the import hook puts around every function of the package."""

from beartype import BeartypeConf, beartype

# A whole number is accepted where a float is asked for, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
