"""Stand-ins without a runtime: models, drafters, backends."""
