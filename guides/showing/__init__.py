"""Results that show themselves: a screen of text at a prompt, a table in a notebook, a picture in either."""
