"""What a notebook shows: results, tables, job progress, cluster status. Views only, nothing is decided here.

Every view offers ``text/plain`` that informs by itself and escaped ``text/html`` that reads well without style or
script, in light and dark; :mod:`~superduper_nb.widgets.progress` alone adds an ipywidgets view, where a live kernel
has one.
"""
