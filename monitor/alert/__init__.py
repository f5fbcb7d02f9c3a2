"""Who is told: findings become incidents, incidents become messages, messages are delivered.

Start with `incidents.apply` (what a check does to the incidents of its model), then
`delivery.deliver_due` (how what was decided reaches people). `causes` names every kind of incident.
"""
