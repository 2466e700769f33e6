"""Methods by seeds by pairs under one budget, with the statistics that say which differences are real."""
