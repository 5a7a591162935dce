"""Token ids in, messages out: a sans-IO parser, tolerant or as strict as openai-harmony 0.0.8."""
