"""From rows of data to distributions of their latents: the parts that amortised guides are made of."""
