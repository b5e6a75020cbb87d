"""Draft heads that read the target's hidden states: what their builds share, and that of recurrent heads."""
