"""The tests that every backend must pass, shipped with the package.

pytest --pyargs specport.conformance --specport-device NAME_OR_PROFILE.toml

They use the public ports only, and take a device's capabilities for what they say: what a device does not
have is skipped, what it has must hold. `specport matrix` runs them on every device.
"""
