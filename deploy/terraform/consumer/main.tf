data "aws_region" "here" {}

data "aws_subnet" "each" {
  for_each = var.subnet_ids
  id       = each.value
}

data "aws_vpc_endpoint_service" "relay" {
  service_name    = var.service_name
  service_regions = var.service_region == null ? null : [var.service_region]
}

locals {
  # A service of another region is reached from every zone.
  zones    = var.service_region == null ? toset(data.aws_vpc_endpoint_service.relay.availability_zones) : null
  without  = local.zones == null ? [] : [for subnet in data.aws_subnet.each : "${subnet.id} (${subnet.availability_zone})" if !contains(local.zones, subnet.availability_zone)]
  by_group = { for pair in setproduct(var.client_security_group_ids, var.ports) : "${pair[0]} ${pair[1]}" => { group = pair[0], port = tonumber(pair[1]) } }
  by_range = { for pair in setproduct(var.client_cidrs, var.ports) : "${pair[0]} ${pair[1]}" => { range = pair[0], port = tonumber(pair[1]) } }
}

resource "aws_security_group" "endpoint" {
  name        = "${var.name}-endpoint"
  description = "The endpoint of relay"
  vpc_id      = var.vpc_id
  tags        = var.tags
}

# Inbound: clients connect to the endpoint, which never connects to anybody.
resource "aws_vpc_security_group_ingress_rule" "groups" {
  for_each                     = local.by_group
  security_group_id            = aws_security_group.endpoint.id
  description                  = "Clients of relay"
  referenced_security_group_id = each.value.group
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
  tags                         = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "ranges" {
  for_each          = local.by_range
  security_group_id = aws_security_group.endpoint.id
  description       = "Clients of relay"
  cidr_ipv4         = each.value.range
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  tags              = var.tags
}

resource "aws_vpc_security_group_egress_rule" "clients" {
  for_each                     = var.manage_client_egress ? local.by_group : {}
  security_group_id            = each.value.group
  description                  = "To the endpoint of relay"
  referenced_security_group_id = aws_security_group.endpoint.id
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
  tags                         = var.tags
}

resource "aws_vpc_endpoint" "relay" {
  vpc_id             = var.vpc_id
  service_name       = var.service_name
  service_region     = var.service_region
  vpc_endpoint_type  = "Interface"
  subnet_ids         = var.subnet_ids
  security_group_ids = [aws_security_group.endpoint.id]
  # Refused by AWS while the endpoint waits for its acceptance: see aws_vpc_endpoint_private_dns below.
  private_dns_enabled = false
  tags                = merge({ Name = var.name }, var.tags)

  lifecycle {
    # private_dns, below, switches it on afterwards.
    ignore_changes = [private_dns_enabled]

    precondition {
      condition     = length(local.without) == 0
      error_message = "The service is not in the zone of: ${join(", ", local.without)}. It is in: ${join(", ", coalesce(local.zones, []))}. Choose subnets of these zones, or ask the operator of relay for more zones."
    }

    precondition {
      condition     = length(distinct([for subnet in data.aws_subnet.each : subnet.availability_zone])) == length(var.subnet_ids)
      error_message = "Two of subnet_ids are of one zone: an endpoint takes one subnet of each zone."
    }

    precondition {
      condition     = alltrue([for subnet in data.aws_subnet.each : subnet.vpc_id == var.vpc_id])
      error_message = "One of subnet_ids is of another VPC than vpc_id."
    }
  }
}

resource "aws_vpc_endpoint_private_dns" "relay" {
  count               = var.private_dns ? 1 : 0
  vpc_endpoint_id     = aws_vpc_endpoint.relay.id
  private_dns_enabled = true
}

# For the name alone, so that no other name of the domain is hidden from the VPC.
resource "aws_route53_zone" "relay" {
  count   = var.dns_name != null && var.zone_id == null ? 1 : 0
  name    = var.dns_name
  comment = "Relay, through its endpoint"
  tags    = var.tags

  vpc {
    vpc_id = var.vpc_id
  }
}

resource "aws_route53_record" "relay" {
  count   = var.dns_name == null ? 0 : 1
  zone_id = var.zone_id == null ? aws_route53_zone.relay[0].zone_id : var.zone_id
  name    = var.dns_name
  type    = "A"

  alias {
    name                   = aws_vpc_endpoint.relay.dns_entry[0].dns_name
    zone_id                = aws_vpc_endpoint.relay.dns_entry[0].hosted_zone_id
    evaluate_target_health = true
  }
}
