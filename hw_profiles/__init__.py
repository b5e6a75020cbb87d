"""One TOML file a device; `specport.runtime.profiles` reads them. Data only."""
