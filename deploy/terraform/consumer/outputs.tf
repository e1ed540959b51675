output "endpoint_id" {
  description = "The endpoint's id, vpce-…. Tell it to the operator of relay, who accepts it (accepted_endpoints) and gives it a client's name."
  value       = aws_vpc_endpoint.relay.id
}

output "state" {
  description = "pendingAcceptance until the operator of relay accepted it, then available."
  value       = aws_vpc_endpoint.relay.state
}

output "dns_names" {
  description = "The endpoint's own names; the first one is of all zones, others of one zone each."
  value       = [for entry in aws_vpc_endpoint.relay.dns_entry : entry.dns_name]
}

output "server" {
  description = "The address for `relay --server`, at the smallest of the ports."
  value       = "https://${coalesce(var.dns_name, aws_vpc_endpoint.relay.dns_entry[0].dns_name)}${contains(var.ports, 443) ? "" : ":${min(var.ports...)}"}"
}

output "security_group_id" {
  description = "The endpoint's security group."
  value       = aws_security_group.endpoint.id
}
