"""One TOML file a device; `specport.runtime.devices.profiles` reads them. Data only."""
