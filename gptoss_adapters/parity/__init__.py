"""Is it the same model? Probes, measured noise, named faults, and a report per target.

`schema.py` says what a report holds; `runner.py` fills it; `report*.py` draw it.
"""
