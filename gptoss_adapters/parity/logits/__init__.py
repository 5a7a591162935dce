"""From prompts and logits to judgements: probes, measurement, statistics, attribution."""
