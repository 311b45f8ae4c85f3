"""The pages and tables that are written from docstrings, registries and result files: python -m docs.writer."""
