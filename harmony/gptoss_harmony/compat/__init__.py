"""Other libraries' interfaces over gptoss_harmony."""
