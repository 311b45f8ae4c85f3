"""From records to tables and reports."""
