"""The toy model: what it is trained on and how, what it shows, and the workflows, videos and pictures made with it."""
