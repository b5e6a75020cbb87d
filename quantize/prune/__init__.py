"""Choice and removal of a draft's layers and channels."""
