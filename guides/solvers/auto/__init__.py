"""The ladder of methods that ``guides.fit(model, "auto", ...)`` climbs."""
