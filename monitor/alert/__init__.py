"""Who is told: findings become incidents, incidents become messages, messages are delivered."""
