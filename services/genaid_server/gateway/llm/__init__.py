"""The LLM over REST, in the dialect of OpenAI."""
