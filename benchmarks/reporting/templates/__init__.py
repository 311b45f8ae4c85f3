"""The report's templates; a package, so that an installation carries them."""
