# Refers to the load balancer, so that a destroy takes the service away first: a load balancer with a service can't be deleted.
resource "aws_vpc_endpoint_service" "relay" {
  acceptance_required        = var.acceptance_required
  network_load_balancer_arns = [local.own ? aws_lb.relay[0].arn : data.aws_lb.given[0].arn]
  supported_ip_address_types = ["ipv4"]
  supported_regions          = length(var.supported_regions) == 0 ? null : var.supported_regions
  private_dns_name           = var.private_dns_name
  tags                       = merge({ Name = var.name }, var.tags)
}

resource "aws_vpc_endpoint_service_allowed_principal" "each" {
  for_each                = var.principals
  vpc_endpoint_service_id = aws_vpc_endpoint_service.relay.id
  principal_arn           = each.value
}

resource "aws_vpc_endpoint_connection_accepter" "each" {
  for_each                = var.accepted_endpoints
  vpc_endpoint_service_id = aws_vpc_endpoint_service.relay.id
  vpc_endpoint_id         = each.value
}

resource "aws_route53_record" "verification" {
  count   = var.public_zone_id == null ? 0 : 1
  zone_id = var.public_zone_id
  name    = "${aws_vpc_endpoint_service.relay.private_dns_name_configuration[0].name}.${var.private_dns_name}"
  type    = "TXT"
  ttl     = 1800
  records = [aws_vpc_endpoint_service.relay.private_dns_name_configuration[0].value]
}

resource "aws_vpc_endpoint_service_private_dns_verification" "relay" {
  count                 = var.public_zone_id == null ? 0 : 1
  service_id            = aws_vpc_endpoint_service.relay.id
  wait_for_verification = true

  depends_on = [aws_route53_record.verification]
}

resource "aws_vpc_endpoint_connection_notification" "relay" {
  count                       = var.connection_topic_arn == null ? 0 : 1
  vpc_endpoint_service_id     = aws_vpc_endpoint_service.relay.id
  connection_notification_arn = var.connection_topic_arn
  connection_events           = ["Accept", "Connect", "Delete", "Reject"]
}
