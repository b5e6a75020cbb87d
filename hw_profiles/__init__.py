"""One TOML file a device; `specport.profiles` reads them. Data only."""
