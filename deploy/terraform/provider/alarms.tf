locals {
  alarmed = local.own && var.alarms
  # Each listener in each zone: the sum over zones hides a zone that serves nobody.
  zonal = local.alarmed ? { for pair in setproduct(keys(var.listeners), keys(var.subnets)) : "${pair[0]}-${pair[1]}" => {
    listener = pair[0]
    zone     = data.aws_subnet.each[pair[1]].availability_zone
  } } : {}
}

resource "aws_cloudwatch_metric_alarm" "no_healthy_target" {
  for_each            = local.zonal
  alarm_name          = "${var.name}-no-healthy-target-${each.key}"
  alarm_description   = "No healthy pod of relay in ${each.value.zone} for listener ${each.value.listener}: clients' endpoints of this zone reach nobody, unless cross_zone is on."
  namespace           = "AWS/NetworkELB"
  metric_name         = "HealthyHostCount"
  statistic           = "Minimum"
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  period              = 60
  evaluation_periods  = 2
  # A zone without targets has no data at all.
  treat_missing_data = "breaching"
  alarm_actions      = var.alarm_topic_arns
  ok_actions         = var.alarm_topic_arns
  tags               = var.tags

  dimensions = {
    AvailabilityZone = each.value.zone
    LoadBalancer     = aws_lb.relay[0].arn_suffix
    TargetGroup      = aws_lb_target_group.each[each.value.listener].arn_suffix
  }
}

resource "aws_cloudwatch_metric_alarm" "ports" {
  count               = local.alarmed ? 1 : 0
  alarm_name          = "${var.name}-port-allocation"
  alarm_description   = "The load balancer has no port left for connections to a pod (55,000 for each): add pods."
  namespace           = "AWS/NetworkELB"
  metric_name         = "PortAllocationErrorCount"
  statistic           = "Sum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 60
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arns
  tags                = var.tags

  dimensions = {
    LoadBalancer = aws_lb.relay[0].arn_suffix
  }
}

resource "aws_cloudwatch_metric_alarm" "blocked" {
  count               = local.alarmed ? 1 : 0
  alarm_name          = "${var.name}-blocked-flows"
  alarm_description   = "The load balancer's security group refused connections: a client whose range is missing in client_cidrs, or somebody who tries."
  namespace           = "AWS/NetworkELB"
  metric_name         = "SecurityGroupBlockedFlowCount_Inbound_TCP"
  statistic           = "Sum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 300
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arns
  tags                = var.tags

  dimensions = {
    LoadBalancer = aws_lb.relay[0].arn_suffix
  }
}
