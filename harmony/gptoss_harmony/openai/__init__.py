"""OpenAI's APIs over Harmony: requests to conversations, model output to answers and stream events."""
