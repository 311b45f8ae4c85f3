"""A Pyro model, guide and objective as pure functions: what sites mean, and what goes in and comes out."""
