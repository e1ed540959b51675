output "service_name" {
  description = "The name that clients create their endpoints with (variable service_name of module consumer)."
  value       = aws_vpc_endpoint_service.relay.service_name
}

output "service_id" {
  description = "The id of the endpoint service, vpce-svc-…."
  value       = aws_vpc_endpoint_service.relay.id
}

output "availability_zones" {
  description = "The zones in which clients can have endpoints, by the names of this account. Names differ between accounts: compare zone ids."
  value       = aws_vpc_endpoint_service.relay.availability_zones
}

output "proxy_trusted" {
  description = "The load balancer's own addresses, for relay's listen.proxy_trusted (--proxy-trusted): nobody else is believed."
  value       = tolist([for address in local.addresses : "${address}/32"])
}

output "target_group_arns" {
  description = "The target group of each listener, for a TargetGroupBinding (elbv2.k8s.aws/v1beta1, targetType ip) that registers relay's pods."
  value       = { for name, group in aws_lb_target_group.each : name => group.arn }
}

output "nlb_arn" {
  description = "The load balancer."
  value       = local.own ? aws_lb.relay[0].arn : var.nlb_arn
}

output "nlb_dns_name" {
  description = "The load balancer's own name, for clients of this VPC and of networks that reach it."
  value       = local.own ? aws_lb.relay[0].dns_name : data.aws_lb.given[0].dns_name
}

output "nlb_security_group_id" {
  description = "The load balancer's security group; null with nlb_arn."
  value       = local.own ? aws_security_group.nlb[0].id : null
}

output "private_dns_verification" {
  description = "The TXT record that proves the domain of private_dns_name, where no public_zone_id writes it; null without private_dns_name."
  value = var.private_dns_name == null ? null : {
    name  = "${aws_vpc_endpoint_service.relay.private_dns_name_configuration[0].name}.${var.private_dns_name}"
    type  = "TXT"
    value = aws_vpc_endpoint_service.relay.private_dns_name_configuration[0].value
  }
}
