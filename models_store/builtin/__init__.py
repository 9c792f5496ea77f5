"""The models that come with Gistmill, and the generator of the dialogues that they were trained on."""
