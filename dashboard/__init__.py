"""The pages people open: which model needs me, why, and what was done about it.

Start with `dashboard.queries` and `dashboard.history` (plain functions over the ledger, no
Streamlit), then `dashboard.views` (what they answer), `dashboard.words` and `dashboard.charts` (how
it is said and drawn). `dashboard.app` is the script Streamlit runs; `dashboard.launch` starts it.
The dashboard only reads.

`streamlit run` puts this folder first on `sys.path`: no module here may bear the name of one of our
packages, of a dependency or of the standard library (a test lists them).
"""
