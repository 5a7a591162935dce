"""What several tests share: made checkpoints, fake engines, oracles. No tests here."""
